"""How much the board may take: a profile for each time, decided by heat, battery and the hour."""
