fn main() {
    let t = tch::Tensor::from_slice(&[1f32, 2.0]);
    println!("{:?} {}", (&t + 1.0).sum(tch::Kind::Float), tch::get_num_threads());
}
