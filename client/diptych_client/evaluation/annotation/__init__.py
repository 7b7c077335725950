"""Labels that models propose, and what labelled images prove about them."""
