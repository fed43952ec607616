"""What `analyses.next_token` is made of: its three questions, their results, and how they look."""
