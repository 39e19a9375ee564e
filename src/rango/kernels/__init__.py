"""The fast twins of numerics/: same names, same signatures; C++ on CPU where it was compiled."""
