"""How results look: the figures, page and terminal view of each analysis, in a file of its name."""
