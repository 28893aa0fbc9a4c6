"""Constitutional revision: chains of answer, critique and revision (Bai et al. 2022)."""
