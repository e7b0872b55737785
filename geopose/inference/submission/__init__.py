"""What a submission folder holds, what is still to do, and what it was made with."""
