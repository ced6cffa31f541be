"""What an image does not say where it is, found by what it must look like, and proved before it is used."""
