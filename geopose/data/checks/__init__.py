"""What the numbers of a data set can be: one in another unit is refused before it is learned."""
