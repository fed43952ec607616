"""What pages are made of: style, scripts, colours, and the interactive parts."""
