"""Teachers: frozen networks that say what a student is to see in an image."""
