"""Labels: how few of them are enough, and where to get them.

What keeps a team from a classifier of its own is seldom the model: it is that nobody has labelled
the examples. This room makes the most of a person's hours, in the order in which they are spent:

    rules.py    patterns that are right more often than not, written in minutes, vote on every row
    votes.py    which rules to believe, learned from where they agree; one label out of many votes
    guess.py    the model of seconds: a bag of words over the whole table, fitted to what is known
    suggest.py  the examples whose label would teach that model most
    teach.py    the model teaches itself from what it is sure of
    store.py    labels.jsonl: every label, who said it and how surely, never overwritten
    table.py    the texts of a table, each once
    project.py  a table, its labels and the model, as they stand now
    server.py   the page (page.html), for this machine only: one example, one key

A fifth of the rows, drawn by the hash of their text, is set aside: people label them in turn with
the others, but nothing learns from them. On these the curve is measured, for what a model itself
has picked is no fair sample (Settles 2009, section 7.1).
"""
