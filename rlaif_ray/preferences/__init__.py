"""From sampled answers to pairs, and from judged pairs to a preference file."""
