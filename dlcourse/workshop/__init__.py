"""The workshop: `handout` makes participants' copies, `check` judges what comes back."""
