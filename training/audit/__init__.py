"""How honest a bundle is: scores of labelled pictures, hide and seek with the lungs, tables by source, view and age."""
