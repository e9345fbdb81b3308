"""What is asked: images, regions and crops."""
