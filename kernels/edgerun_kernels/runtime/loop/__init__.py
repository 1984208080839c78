"""What threads run: the loop over a tape, which kernel runs a record, and how they wait for each other."""
