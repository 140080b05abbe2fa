"""The recipe of vorta-mini: tokenizer, corpus, model, training, export and evaluation, in plain torch.

`python -m vorta_bench.mini train --help` is the entry. Nothing here is needed to serve the model.
"""
