"""The page that a GPU run is read on: `python -m vorta_bench.report DIR --out page.html`.

`results` reads the stages' JSON, `goals` judges it, `plot` draws, `page` writes. Standard library only; the page loads
nothing. Where a figure is missing the page says so: a stage that was not run is never passed over.
"""
