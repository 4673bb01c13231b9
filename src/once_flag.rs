//! A flag for what is to be said or done once.

/// A flag that answers whether it has changed.
#[derive(Debug, Default)]
pub struct OnceFlag(bool);

impl OnceFlag {
    /// Raises the flag; true if it was not raised yet.
    pub fn raise(&mut self) -> bool {
        let raised = self.0;
        self.0 = true;
        !raised
    }

    /// Lowers the flag; true if it was raised.
    pub fn lower(&mut self) -> bool {
        std::mem::take(&mut self.0)
    }
}
