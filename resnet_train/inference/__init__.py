"""A trained network put to use: found, loaded, evaluated, asked, exported."""
