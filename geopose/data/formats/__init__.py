"""What image formats say beside their pixels, told from their bytes."""
