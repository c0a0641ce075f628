"""The verb `serve`: an address where an image goes in and its mask comes out."""
