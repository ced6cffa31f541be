"""Memory that was swapped out: from the swap cache, zswap, zram, or an image of the swap area."""
