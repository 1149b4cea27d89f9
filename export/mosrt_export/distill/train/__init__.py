"""The network of students, its training, and its export."""
