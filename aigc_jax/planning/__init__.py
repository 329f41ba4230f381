"""What a config costs on devices that are not there: compiled for them, and held to their peaks."""
