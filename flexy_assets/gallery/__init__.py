"""The gallery: a page to generate single images, look at them and compare them."""
