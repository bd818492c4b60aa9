"""What a prepared dataset holds, and whether its splits leak into each other."""
