"""What was trained is made small: fewer bits a weight, and what is given to other programs."""
