"""An ordinary training script: nothing in it knows of labtrack.

    . ./mlflow_env.sh
    python train.py

Learns to read handwritten digits (scikit-learn's own, no download) in some seconds, and logs
what a research script logs: parameters, a metric per epoch, a figure, a text file and the model.
"""

import argparse
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import mlflow
import numpy as np
from mlflow.models import infer_signature
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import classification_report, log_loss
from sklearn.model_selection import train_test_split

mpl.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", help="where the run goes; without it, where MLflow puts runs that name none")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--pause", type=float, default=0, help="seconds more for each epoch, as with more data")
    args = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images / 16, digits, random_state=0)
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=args.learning_rate, random_state=0)

    if args.experiment:
        mlflow.set_experiment(args.experiment)
    with mlflow.start_run() as run:
        mlflow.log_params({"epochs": args.epochs, "learning_rate": args.learning_rate, "model": "SGDClassifier"})
        losses = []
        for epoch in range(args.epochs):
            model.partial_fit(train_x, train_y, classes=np.unique(digits))
            losses.append(log_loss(test_y, model.predict_proba(test_x)))
            mlflow.log_metrics({"loss": losses[-1], "accuracy": model.score(test_x, test_y)}, step=epoch)
            time.sleep(args.pause)

        figure, axes = plt.subplots()
        axes.plot(losses)
        axes.set(xlabel="epoch", ylabel="loss", title="Digits")
        mlflow.log_figure(figure, "figures/loss.png")

        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.txt")
            report.write_text(classification_report(test_y, model.predict(test_x)))
            mlflow.log_artifact(str(report))

        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(test_x, model.predict(test_x)),
            registered_model_name=args.experiment or "digits",
        )
        print(f"run {run.info.run_id}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
