"""The GPU run: everything that is measured on one card, in stages that leave JSON. See `__main__`.

A stage is a module with `parts(settings)`, the processes that it is cut into, and `cells(settings, part)`, what one of
them measures. `stage` runs cells and writes each figure as soon as there is one; `model_shape` and `floor` hold the
arithmetic; `runner` is the one place that makes Vorta's runner and the arguments of its server.
"""
