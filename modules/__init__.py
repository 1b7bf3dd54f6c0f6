"""The parts that train.py and predict.py are made of; nothing here imports the files at the root."""
