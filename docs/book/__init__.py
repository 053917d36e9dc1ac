"""What turns the course's own files into the pages of the book."""
