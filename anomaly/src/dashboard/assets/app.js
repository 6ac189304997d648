// The page needs no script for now.
