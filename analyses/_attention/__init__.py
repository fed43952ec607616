"""What `analyses.attention` is made of: results, and the matrices they hold."""
