"""What an opened image can do, and the formats that can do it."""
