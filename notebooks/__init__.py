"""Notebooks, and the tools that run them and keep what they print and draw.

Tools for work on this package; only the notebooks are for its users.

| module | what it does |
|---|---|
| `notebooks.build` | runs notebooks in place and keeps their outputs, each with a picture |
| `notebooks.run` | runs one in a kernel of its own, offline |
| `notebooks.pictures` | pictures of what a reader sees of an interactive output |
| `notebooks.clean` | takes out what changes from run to run; finds what must not be there |
| `notebooks.browser` | a headless browser, for pictures and for tests of pages |
"""
