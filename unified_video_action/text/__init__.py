"""Language: instructions to text features."""
