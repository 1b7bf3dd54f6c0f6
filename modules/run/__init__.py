"""One training run: settings, plan, folder, fitting, evaluation and proof."""
