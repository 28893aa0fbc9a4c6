"""What a run leaves behind for people and programs: its summary and its page."""
