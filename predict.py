"""Predicts heights and flow of any image: python predict.py IMAGE --model M --out DIR."""

from geopose.commands import predict

if __name__ == "__main__":
    predict()
