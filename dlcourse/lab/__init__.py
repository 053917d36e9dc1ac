"""The bench that every chapter shares."""
