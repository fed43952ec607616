"""What `analyses.logit_lens` is made of: points, arguments, numbers, tables."""
