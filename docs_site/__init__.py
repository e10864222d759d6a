"""Builds the site of `docs/`: generated reference tables, links into the repository, drawings.

- `hooks`: what MkDocs calls
- `doctests`: doctests of docstrings as code blocks
- `navigation`: entries that stand for a folder
- `tables`: training options, recipes, attentions and the command line, written from the code
- `drawings`, `guide_drawings`, `canvas`: the drawings of the pages, as SVG
- `stripes`: the picture of real stripes, from a network that it trains

Why here: the library does not need any of it, and pages stay readable in the repository without it.
"""
