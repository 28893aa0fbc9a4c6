"""One iteration of the online loop as a timeline: what its stages and actors did, and when."""
