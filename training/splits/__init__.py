"""Who may see which picture: groups, folds, the calibration split, and checks that refuse a leak."""
