"""What a budget allows: its limits, in words and in windows, and whose shares they are."""
