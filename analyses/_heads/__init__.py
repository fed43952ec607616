"""What `analyses.heads` is made of; and names of heads, which other analyses share."""
