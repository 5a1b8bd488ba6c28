"""Speed and quality beside the tool a user would pick instead, both sides in one run."""
