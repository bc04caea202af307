"""The fleet's retained documents at the broker: layers written safely, reports read, rollouts guarded."""
