"""UltraSeg in use: its exact inference form, export, backends, benchmark and prediction."""
