"""What belongs to one run: its folder, its trained model, what it looks at on a schedule."""
