"""`mosrt gate`: record the scores of a set of clips, compare newly made clips with them."""
