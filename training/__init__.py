"""How the bundled model `mini` was made: tokenizer, data mixture, training, measurements, card.

Run it as `python -m training.mini`. Only the repository holds this package; the wheel does not.
"""
